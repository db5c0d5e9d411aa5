"""Models: load one, route its attention here, the embedded one, and the shapes of well-known ones."""
