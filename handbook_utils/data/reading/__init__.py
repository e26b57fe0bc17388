"""Files and folders as rows: what is text stays text, and which files of a folder are which split."""
