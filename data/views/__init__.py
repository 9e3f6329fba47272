"""From rows to views: boxes, random streams, batches, crops and augmentation."""
