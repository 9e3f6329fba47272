"""Pretraining methods, one file each: how to draw views and compute the loss. No Ray, no files, no logging."""

from methods import lean_monai
from methods.base import Method
from methods.cpc import CPC
from methods.deepcluster_v2 import DeepClusterV2
from methods.exemplar import Exemplar
from methods.jigsaw import Jigsaw
from methods.jigsaw_clustering import JigsawClustering
from methods.jssl_cluster import JSSLCluster
from methods.jssl_mask import JSSLMask
from methods.models_genesis import ModelsGenesis
from methods.patch_location import PatchLocation
from methods.position_label import PositionLabel
from methods.rotation import Rotation
from methods.rubiks_cube import RubiksCube
from methods.rubiks_cube_plus import RubiksCubePlus
from methods.scratch import Scratch
from methods.simmim import SimMIM
from methods.simsiam import SimSiam
from methods.svdnet import SVDNet
from methods.svdnet_detection import SVDNetDetection
from methods.swav import SwAV
from methods.swin_pretext import SwinPretext
from methods.voco import VoCo
from methods.volume_fusion import VolumeFusion

lean_monai.install()

METHODS: dict[str, type[Method]] = {
    "simsiam": SimSiam,
    "voco": VoCo,
    "rotation": Rotation,
    "patch_location": PatchLocation,
    "jigsaw": Jigsaw,
    "exemplar": Exemplar,
    "cpc": CPC,
    "simmim": SimMIM,
    "swav": SwAV,
    "deepcluster_v2": DeepClusterV2,
    "jssl_mask": JSSLMask,
    "jssl_cluster": JSSLCluster,
    "svdnet": SVDNet,
    "svdnet_detection": SVDNetDetection,
    "models_genesis": ModelsGenesis,
    "volume_fusion": VolumeFusion,
    "swin_pretext": SwinPretext,
    "position_label": PositionLabel,
    "rubiks_cube": RubiksCube,
    "rubiks_cube_plus": RubiksCubePlus,
    "jigsaw_clustering": JigsawClustering,
    "scratch": Scratch,
}
