"""Report: one page that answers which pretraining was worth it, with its proof."""
