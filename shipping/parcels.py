"""A signed bundle as it is sent: read once, shared by all devices, its files read again chunk by chunk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resedge import bundle as bundles
from resedge.artifacts import sha256_bytes
from resedge.bundle import Bundle
from resedge.errors import InputRefused, StaleArtifact
from resedge.shipping import framing, wire
from resedge.shipping.chunks import FileChunks, read_chunk, split_file


@dataclass(frozen=True)
class Parcel:
    """What is sent: the bytes that are signed, and the chunks of each content.

    `digest` is the SHA-256 of the manifest, by which a device knows the release. `paths` says where the
    content of a digest can be read.
    """

    bundle: Bundle
    digest: str
    manifest: bytes
    signature: bytes
    agent: bytes
    agent_signature: bytes
    files: tuple[FileChunks, ...]
    paths: Mapping[str, Path]

    @property
    def agent_digest(self) -> str:
        """The SHA-256 of the agent."""
        return sha256_bytes(self.agent)

    @property
    def size(self) -> int:
        """The bytes of all contents, each once."""
        return sum(file.size for file in self.files)

    @property
    def request(self) -> bytes:
        """What the agent's `begin` is given."""
        return framing.begin_request(self.manifest, self.signature, self.files)

    def size_of(self, missing: Sequence[wire.Missing]) -> int:
        """Return the bytes of chunks that a device says it does not hold.

        Raises:
            InputRefused: It asks for what is none of the bundle, or for the same twice.
        """
        files = self._by_digest()
        for wanted in missing:
            file = files.pop(wanted.sha256, None)
            if file is None or not set(wanted.chunks) <= set(range(len(file.chunks))):
                raise InputRefused(
                    "the device asks for what is none of the bundle.", where=wanted.sha256[:12]
                )
            if len(set(wanted.chunks)) < len(wanted.chunks):
                raise InputRefused("the device asks for a chunk twice.", where=wanted.sha256[:12])
        files = self._by_digest()
        return sum(files[m.sha256].span(index)[1] for m in missing for index in m.chunks)

    async def frames(
        self, missing: Sequence[wire.Missing], sent: Callable[[int], None]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the frames of chunks that `size_of` takes; `sent` is told the bytes of each behind it.

        Raises:
            StaleArtifact: A file has become shorter; a changed one is refused by the device.
        """
        files = self._by_digest()
        for wanted in missing:
            file, path = files[wanted.sha256], self.paths[wanted.sha256]
            with path.open("rb") as stream:
                for index in wanted.chunks:
                    data = read_chunk(stream, file, index)
                    if sha256_bytes(data) != file.chunks[index]:
                        raise StaleArtifact("changed while it was sent.", where=str(path))
                    yield framing.chunk_frame(file.sha256, index, data)
                    sent(len(data))

    def _by_digest(self) -> dict[str, FileChunks]:
        return {file.sha256: file for file in self.files}


def wrap(bundle: Bundle) -> Parcel:
    """Read a signed bundle for sending; its files are compared with the manifest.

    Raises:
        InputRefused: It is not signed.
        StaleArtifact: A file is not the one that the manifest names.
    """
    manifest = (bundle.path / bundles.MANIFEST).read_bytes()
    if bundles.parse(manifest.decode(), str(bundle.path)) != bundle.manifest:
        raise StaleArtifact("changed while it was read.", where=str(bundle.path / bundles.MANIFEST))
    paths = {artifact.sha256: bundle.path / artifact.path for artifact in bundle.manifest.files}
    files = tuple(split_file(path) for path in paths.values())
    for file, (digest, path) in zip(files, paths.items(), strict=True):
        if file.sha256 != digest:
            raise StaleArtifact("is not the file that the manifest names.", where=str(path))
    return Parcel(
        bundle,
        sha256_bytes(manifest),
        manifest,
        (bundle.path / bundles.SIGNATURE).read_bytes(),
        bundle.file(bundles.AGENT).read(),
        bundle.file(bundles.AGENT_SIGNATURE).read(),
        files,
        paths,
    )
