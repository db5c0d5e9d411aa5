"""KV-cache policies: one file per method, the file's name is the method's name."""
