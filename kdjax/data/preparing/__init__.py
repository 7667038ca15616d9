"""From the files that a data set is published as to records with an index, once."""
