"""The stages, one file and one command each, and the rooms with what they share."""

from tasks.environment import set_defaults

set_defaults()
