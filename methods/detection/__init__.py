"""Two-stage detection: boxes, anchors, matching, sampling, RoIAlign, suppression, losses, and the network of them.

A box is a row of 2n numbers, its low corner and its high corner (exclusive), axes in the order of arrays. It is given
in edges: pixel i spans [i, i + 1). That is ``data/boxes.py``'s box with its corners in a row, and MONAI's standard
mode with its axes in the order of arrays.

torchvision cannot be imported beside torch's CPU build. MONAI's detection parts can; each file says why it does
without them, or, as ``feature_pyramid.py``, uses them.
"""
