"""Diagnosis: why a training's loss is flat or odd, from what its run left and a second look at its samples."""
