"""Models in GGUF files, alone or inside an installed Python distribution: found, checked, converted once."""
