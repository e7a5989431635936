"""What only the sharer has read: maps its KV entries of a token to the receiver's for one slot. Plain torch."""

from c2c_lightning.mapper.base import Mapper, MapperFactory
from c2c_lightning.mapper.handed import Handed
from c2c_lightning.mapper.network import NetworkMapper
from c2c_lightning.mapper.prefix import Prefix
from c2c_lightning.mapper.ridge import RidgeMapper

__all__ = ["Handed", "Mapper", "MapperFactory", "NetworkMapper", "Prefix", "RidgeMapper"]
