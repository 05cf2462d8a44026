"""miscue measures, causes and cures wrong cues in image classifiers."""
