"""Files of rows and their columns, read without torch: by recipes that are checked, and by the data of a run."""
