"""What a step of the small pairs costs, under either MMDetection."""

PROBES = ((128, 128), (256, 128))
WIDTH, HEIGHT, IMAGES = 384, 256, 4
# By family: operations of student, teacher and distillation, peak bytes of a step and of a
# generation.
COSTS = {
    'one_stage': (2262.0e6, 923.4e6, 291.5e6, 42.0e6, 2.753e6),
    'two_stage': (2714.9e6, 1005.1e6, 708.6e6, 53.1e6, 3.511e6),
}
