"""Images with their digests and labels: the built-in set, the user's, the split, and preprocessing.

One implementation of preprocessing serves calibration, evaluation and prediction. Images are decoded when
they are asked for, a batch at a time; what is known of every image beforehand is the digest of its content,
so an image is the same wherever it lies and however it was saved without loss.
"""

from resedge.images.arrays import builtin_calibration as builtin_calibration
from resedge.images.arrays import builtin_test as builtin_test
from resedge.images.arrays import read_idx as read_idx
from resedge.images.arrays import read_npz as read_npz
from resedge.images.decoding import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from resedge.images.decoding import Decoding as Decoding
from resedge.images.decoding import decode_file as decode_file
from resedge.images.decoding import decoding_of as decoding_of
from resedge.images.listing import read_folder as read_folder
from resedge.images.listing import read_list as read_list
from resedge.images.preparing import NOTEBOOK_PREPROCESSING as NOTEBOOK_PREPROCESSING
from resedge.images.preparing import Frames as Frames
from resedge.images.preparing import as_input as as_input
from resedge.images.preparing import demand_frames as demand_frames
from resedge.images.preparing import ordered as ordered
from resedge.images.preparing import prepare as prepare
from resedge.images.reading import read as read
from resedge.images.sets import ImageSet as ImageSet
from resedge.images.sets import Undecodable as Undecodable
from resedge.images.sets import content_digest as content_digest
from resedge.images.splitting import Split as Split
from resedge.images.splitting import disjoint as disjoint
from resedge.images.splitting import halve as halve
from resedge.images.splitting import split as split
from resedge.images.splitting import without as without
