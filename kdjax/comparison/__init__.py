"""Methods side by side: one teacher, the plain student and every method, over seeds."""
