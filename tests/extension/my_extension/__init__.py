"""What a user has of their own beside kdjax: a kind of extension a module."""
