"""A causal language model whose layers differ in width and in their number of heads.

A stock config says one width for all layers. This file builds the stock model of the family that
`config.json` names, gives the parameters listed there under `ragged` their own shapes, and sets the
few attributes that count heads. It runs nothing else, and knows nothing of any family.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
"""

import copy
from functools import cache

from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)


class RaggedConfig(PretrainedConfig):
    """The family's config, with what differs from layer to layer under `ragged`.

    `ragged` holds `shapes` (of parameters, by name) and `attributes` (of modules, by name).
    """

    @classmethod
    def from_pretrained(cls, folder, **kwargs):
        """Read `config.json`."""
        content, kwargs = cls.get_config_dict(folder, **kwargs)
        return cls.from_dict(content, **kwargs)

    @classmethod
    def from_dict(cls, content, **kwargs):
        """Make a config of the family, which is one of this class too."""
        family = CONFIG_MAPPING[content["model_type"]]
        if not issubclass(cls, family):
            return _config_of(family).from_dict(content, **kwargs)
        return super().from_dict(content, **kwargs)

    def validate_architecture(self):
        """Nothing: the family's own rules are of models whose layers are all alike."""


@cache
def _config_of(family):
    return _derived(RaggedConfig, (RaggedConfig, family), {})


@cache
def _model_of(own, stock, config_class):
    def __init__(self, config, *args, **kwargs):
        stock.__init__(self, config, *args, **kwargs)
        _reshape(self, config.ragged)

    return _derived(own, (stock,), {"config_class": config_class, "__init__": __init__})


def _derived(own, bases, content):
    """A class under the name of one of this file, so that saving a model saves this file too."""
    named = {"__module__": __name__, "__qualname__": own.__name__, "_auto_class": own._auto_class}
    return type(own.__name__, bases, {**named, **content})


def _reshape(model, ragged):
    prefix = f"{model.base_model_prefix}."
    alone = not hasattr(model, model.base_model_prefix)  # the decoder without its head

    def find(name):
        return model.get_submodule(name.removeprefix(prefix) if alone else name)

    for name, shape in ragged["shapes"].items():
        module, _, leaf = name.rpartition(".")
        owner = find(module)
        old = getattr(owner, leaf)
        setattr(owner, leaf, nn.Parameter(old.new_empty(shape), requires_grad=old.requires_grad))
        if isinstance(owner, nn.Linear):
            owner.out_features, owner.in_features = owner.weight.shape
        elif hasattr(owner, "nf"):  # transformers' Conv1D
            owner.nx, owner.nf = owner.weight.shape
    for name, attributes in ragged["attributes"].items():
        module = find(name)
        for key, value in attributes.items():
            if key == "config":  # a module that counts its heads by the config sees one of its own
                own = copy.copy(module.config)
                for config_key, config_value in value.items():
                    setattr(own, config_key, config_value)
                value = own
            setattr(module, key, value)


class RaggedModel(PreTrainedModel):
    """The decoder."""

    config_class = RaggedConfig
    _mapping = MODEL_MAPPING

    @classmethod
    def _class_for(cls, config):
        family = CONFIG_MAPPING[config.model_type]
        return _model_of(cls, cls._mapping[family], type(config))

    @classmethod
    def from_pretrained(cls, folder, *args, config=None, **kwargs):
        """Load a checkpoint."""
        if config is None:
            config = RaggedConfig.from_pretrained(folder)
        own = cls._class_for(config)
        # Some families' tensors are renamed on loading, which goes by the name of the class.
        names = own.__base__.__name__, config.model_type
        found = [get_checkpoint_conversion_mapping(name) for name in names]
        renamed = next((each for each in found if each is not None), [])
        register_checkpoint_conversion_mapping(own.__name__, renamed, overwrite=True)
        return own.from_pretrained(folder, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config, **kwargs):
        return cls._class_for(config)._from_config(config, **kwargs)


class RaggedForCausalLM(RaggedModel):
    """The whole model."""

    _mapping = MODEL_FOR_CAUSAL_LM_MAPPING
