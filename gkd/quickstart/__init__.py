"""The quickstart with MMDetection 3, and what it shares with that of 2."""

FAMILIES = dict(retinanet='RetinaNet', faster_rcnn='FasterRCNN')  # with their types
