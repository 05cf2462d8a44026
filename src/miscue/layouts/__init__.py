"""How labelled images lie on disk: one file per layout, each with `fits`, a reader and a writer."""
