"""Pages of the site that are written from the code while the site is built."""
