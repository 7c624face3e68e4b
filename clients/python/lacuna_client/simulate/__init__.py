"""Generated LiDAR scans of streets, with a class for every point: data for demonstrations, tests and training.

scan = simulate_scan(seed=7)
scan.points   # float32 [n, 4]: x, y, z in metres in the sensor's frame, intensity 0..1
scan.labels   # uint8 [n]: index into CLASSES
"""

from lacuna_client.simulate.classes import CLASSES
from lacuna_client.simulate.lidar import Lidar
from lacuna_client.simulate.scan import Scan, simulate_scan
from lacuna_client.simulate.street import StreetStyle

__all__ = ["CLASSES", "Lidar", "Scan", "StreetStyle", "simulate_scan"]
