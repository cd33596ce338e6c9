"""What the machine is: generations, defects, the logical mesh, and the wafer that programs are compiled for."""

from .ceiling import most_logical_pes as most_logical_pes
from .cluster import MEMORYX as MEMORYX
from .cluster import Cluster as Cluster
from .cluster import MemoryX as MemoryX
from .cluster import SwarmX as SwarmX
from .defects import DefectMap as DefectMap
from .devices import request_cpu_devices as request_cpu_devices
from .embedding import Remap as Remap
from .paths import Routes as Routes
from .paths import static_routes as static_routes
from .remap import UnusableWaferError as UnusableWaferError
from .remap import remap as remap
from .spec import WSE1 as WSE1
from .spec import WSE2 as WSE2
from .spec import WSE3 as WSE3
from .spec import WaferSpec as WaferSpec
from .system import CS1 as CS1
from .system import CS2 as CS2
from .system import CS3 as CS3
from .system import SYSTEMS as SYSTEMS
from .system import System as System
from .system import as_system as as_system
from .system import system as system
from .system import system_of as system_of
from .wafer import Wafer as Wafer
