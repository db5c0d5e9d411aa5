"""The command line: parse, configure, run, show. Nothing is computed here."""
