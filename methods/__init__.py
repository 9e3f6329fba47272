"""Pretraining methods, one file each: how to draw views and compute the loss. No Ray, no files, no logging."""

from methods import lean_monai
from methods.barlow_twins import BarlowTwins
from methods.base import Method
from methods.byol import BYOL
from methods.c2l import C2L
from methods.cpc import CPC
from methods.deepcluster_v2 import DeepClusterV2
from methods.exemplar import Exemplar
from methods.jigsaw import Jigsaw
from methods.jssl_cluster import JSSLCluster
from methods.jssl_mask import JSSLMask
from methods.moco_v2 import MoCoV2
from methods.moco_v3 import MoCoV3
from methods.patch_location import PatchLocation
from methods.pgl import PGL
from methods.rotation import Rotation
from methods.scratch import Scratch
from methods.simclr import SimCLR
from methods.simmim import SimMIM
from methods.simsiam import SimSiam
from methods.svdnet import SVDNet
from methods.svdnet_detection import SVDNetDetection
from methods.swav import SwAV
from methods.vicreg import VICReg
from methods.vicregl import VICRegL
from methods.voco import VoCo

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
    "simclr": SimCLR,
    "byol": BYOL,
    "moco_v2": MoCoV2,
    "moco_v3": MoCoV3,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "vicregl": VICRegL,
    "c2l": C2L,
    "pgl": PGL,
    "scratch": Scratch,
}
