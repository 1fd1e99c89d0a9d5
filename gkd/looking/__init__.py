"""Look inside: the gallery of prototypes, and the trust in instances."""

from gkd.environment import check_environment

check_environment()
