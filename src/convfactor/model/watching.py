"""See every convolution that a model runs, modules and functional calls, as it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convfactor.conv.calls import ConvCall, read_call
from convfactor.conv.forms import Form
from convfactor.conv.framed import Layer
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.weights import ComposedWeight
from convfactor.model.sites import Kind


class Watched(Protocol):
    """A convolution to look out for."""

    @property
    def kind(self) -> Kind:
        """A module or a functional call."""

    @property
    def owners(self) -> tuple[str, ...]:
        """Qualified names of the modules."""

    @property
    def held(self) -> Tensor:
        """The weight that the call is given."""

    @property
    def form(self) -> Form:
        """How the call is a plain convolution."""

    @property
    def geometry(self) -> ConvGeometry | None:
        """What that one computes."""


W = TypeVar("W", bound=Watched)


@contextmanager
def watch(
    model: nn.Module, sites: Iterable[W], on_call: Callable[[W, Tensor], None]
) -> Iterator[None]:
    """Call ``on_call(site, image)`` before one of the sites is run, with what it reads."""
    with Watcher(model, list(sites), on_call).watching():
        yield


class Onlooker(TorchFunctionMode, ABC):
    """Looks at every call of a function of torch, and changes nothing."""

    @abstractmethod
    def look(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Look at a call before it is made."""

    def saw(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: object,
    ) -> None:
        """Look at a call that was made, and at what it gave."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Look at a call, make it, and look again."""
        kwargs = kwargs or {}
        self.look(func, args, kwargs)
        output = func(*args, **kwargs)
        self.saw(func, args, kwargs, output)
        return output


class Watcher(Onlooker, Generic[W]):
    """Sees modules through hooks and functional convolutions through the function mode."""

    def __init__(
        self, model: nn.Module, sites: list[W], on_call: Callable[[W, Tensor], None]
    ) -> None:
        """Set up a watcher.

        Args:
            model: The model; it is left as it was.
            sites: What to watch.
            on_call: Called with a site before it is run, and with the image that it reads.
        """
        super().__init__()
        self.model = model
        self.sites = sites
        self._on_call = on_call
        self._stack: list[nn.Module] = []
        self._modules = {
            id(model.get_submodule(name)): site
            for site in sites
            if site.kind == "module"
            for name in site.owners
        }

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is run inside."""
        with ExitStack() as hooks:
            for module in self.model.modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                hooks.callback(
                    module.register_forward_pre_hook(self._enter, with_kwargs=True).remove
                )
                hooks.callback(module.register_forward_hook(self._leave, always_call=True).remove)
            hooks.enter_context(self)
            yield

    @property
    def inside(self) -> nn.Module:
        """The module whose forward runs."""
        return self._stack[-1] if self._stack else self.model

    def functional(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ConvCall | None:
        """Read a convolution that is called as a function, and not by a module made for it."""
        if self._is_known(self.inside) or isinstance(self.inside, Layer):
            return None
        call = read_call(func, args, kwargs)
        return None if call is None or isinstance(call.weight, ComposedWeight) else call

    def _is_known(self, module: nn.Module) -> bool:
        """Whether a module is watched as a whole."""
        return id(module) in self._modules

    def site_of(self, call: ConvCall) -> W | None:
        """The site of a functional call."""
        for site in self.sites:
            same = site.held is call.weight and site.form == call.form
            if site.kind == "functional" and same and site.geometry == call.geometry:
                return site
        return None

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._stack.append(module)
        site = self._modules.get(id(module))
        if site is not None:
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, Tensor):
                self._on_call(site, site.form.input(x))

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        self._stack.pop()

    def look(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Tell of a convolution that is watched."""
        call = self.functional(func, args, kwargs)
        site = None if call is None else self.site_of(call)
        self._note(func, (args, kwargs), None if call is None or site is None else call.weight)
        if call is not None and site is not None:
            self._on_call(site, call.form.input(call.input))

    def _note(self, func: Callable[..., Any], arguments: object, weight: Tensor | None) -> None:
        """Look at what any function is given; the weight of a site is said apart."""
