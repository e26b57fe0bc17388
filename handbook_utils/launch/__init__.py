"""Starting several processes that train together, watching them, and ending them as one."""
