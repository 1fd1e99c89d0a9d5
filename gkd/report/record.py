"""Names of the files that a training leaves for its report, and what is in its record."""

RECORD, DETECTIONS, REPORT = 'record.json', 'detections.bbox.json', 'report.html'
TEACHER_DETECTIONS = 'teacher.bbox.json'
BINS = 20  # of the histograms of robust weights, from 0 to 1
