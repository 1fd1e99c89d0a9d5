"""Before a training: what it will take, and the config of a pair that has none."""

from gkd.environment import check_environment

check_environment()
