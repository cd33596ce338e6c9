"""How programs run that are larger than a wafer, or that several wafers share."""

from .schedule import Layer as Layer
from .schedule import Schedule as Schedule
from .schedule import Stage as Stage
from .schedule import layer_stages as layer_stages
from .schedule import least_tokens as least_tokens
from .schedule import schedule as schedule
from .schedule import slack_seconds as slack_seconds
