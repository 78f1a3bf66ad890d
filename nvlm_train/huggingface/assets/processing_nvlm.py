"""Prompts and pictures for NVLM-D, NVLM-X and NVLM-H: a conversation with pictures in, what the model takes out.

Needs torch and Pillow only. As in training: a picture is stretched to the allowed grid whose shape is nearest, cut into tiles row
by row, and followed by a thumbnail of the whole. Each tile has its tag, ordinary text. Where tiles and tags go:

              in the token sequence                                              in the memory of cross-attention
    NVLM-D    [tag 1][tile 1] ... [tag k][tile k][thumbnail's tag][thumbnail]    -
    NVLM-X    [tag 1] ... [tag k][thumbnail's tag]                               [tile 1] ... [tile k][thumbnail]
    NVLM-H    [thumbnail's tag][thumbnail]                                       [tag 1][tile 1] ... [tag k][tile k]

Text reads every memory tile of the pictures before it; in NVLM-X a tag reads its own tile only.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

PLACEHOLDER, OPEN, CLOSE = "<image>", "<Image>", "</Image>"


@dataclass
class Written:
    """A prompt while it is written. Of memory tiles: the tag beside each, the position from which on tokens read it, and (start,
    end) of the tokens that read it and no other (start = end: there are none)."""

    tokens: list = field(default_factory=list)
    in_memory: list = field(default_factory=list)       # of every tile
    tags: list = field(default_factory=list)
    seen_from: list = field(default_factory=list)
    bound: list = field(default_factory=list)

    def reads(self):
        """bool [T, m]: which memory tiles each token reads."""
        table = torch.arange(len(self.tokens))[:, None] >= torch.tensor(self.seen_from, dtype=torch.long)
        for tile, (start, end) in enumerate(self.bound):
            table[start:end] = False
            table[start:end, tile] = True
        return table


def choose_grid(width, height, max_tiles, size):
    """(columns, rows): the nearest ratio by plain difference; of equal ones the larger only if the picture fills half of it."""
    grids = [(cols, rows) for cols in range(1, max_tiles + 1) for rows in range(1, max_tiles // cols + 1)]
    best, nearest = (1, 1), float("inf")
    for cols, rows in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)):
        difference = abs(width / height - cols / rows)
        if difference < nearest or (difference == nearest and width * height > 0.5 * size * size * cols * rows):
            best, nearest = (cols, rows), difference
    return best


def upright_rgb(image):
    """A path or a Pillow picture as RGB: turned as its EXIF says, transparency on white."""
    image = ImageOps.exif_transpose(image if isinstance(image, Image.Image) else Image.open(image))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def cut(image, grid, size, thumbnail):
    """uint8 [n, 3, size, size]: the grid's tiles row by row, then the thumbnail if there are several."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, image.height, image.width, 3)
    picture = data.permute(0, 3, 1, 2)      # channels last in memory: the resizing that training uses, to the bit

    def resized(cols, rows):
        return F.interpolate(picture, (rows * size, cols * size), mode="bicubic", antialias=True)

    cols, rows = grid
    tiles = resized(cols, rows).reshape(3, rows, size, cols, size).permute(1, 3, 0, 2, 4).reshape(-1, 3, size, size)
    return torch.cat((tiles, resized(1, 1))) if thumbnail and len(tiles) > 1 else tiles


def tile_tags(kind, whole, grid, size, thumbnail):
    """The tag of each tile, the thumbnail's last; empty ones for no tags. A single tile has the thumbnail's."""
    cols, count = grid[0], grid[0] * grid[1]
    if kind == "none":
        return [""] * (count + (thumbnail and count > 1))
    if count == 1:
        return [whole]
    if kind == "1d":
        tags = [f"<tile_{number + 1}>" for number in range(count)]
    elif kind == "2d_grid":
        tags = [f"<tile_x{number % cols}_y{number // cols}>" for number in range(count)]
    else:
        corners = [(number % cols * size, number // cols * size) for number in range(count)]
        tags = [f"<box> ({x}, {y}), ({x + size}, {y + size}) </box>" for x, y in corners]
    return tags + [whole] * thumbnail


class NvlmProcessor:
    """Writes prompts for one model. `prepare` gives the arguments of the model's `forward` and `generate`."""

    def __init__(self, config, tokenizer):
        """config: the model's, see configuration_nvlm. tokenizer: the fast tokenizer of the model's folder."""
        self.config, self.tokenizer, self.prompt = config, tokenizer, config.prompt
        self.tile_tokens = int(config.force_image_size // config.vision_config.patch_size * config.downsample_ratio) ** 2
        self.image_id = self._special(self.prompt["image_token"])

    def prepare(self, question, images=(), history=(), system=None):
        """Tensors of one conversation that ends with a question.

        images: paths or Pillow pictures, one for each `<image>` of the conversation; if it has none they stand before the first
        question, a line each. history: earlier (question, answer) pairs. system: instead of the model's own system message.
        """
        config, pictures = self.config, [upright_rgb(image) for image in images]
        most = config.max_dynamic_patch if config.dynamic_image_size else 1
        grids = [choose_grid(*picture.size, most, config.force_image_size) for picture in pictures]
        written = self._write(self._turns(question, len(pictures), history, system), iter(grids))
        ready = {"input_ids": torch.tensor([written.tokens])}
        if pictures:
            tiles = [cut(*one, config.force_image_size, config.use_thumbnail) for one in zip(pictures, grids)]
            ready["pixel_values"] = self.normalised(torch.cat(tiles))
        if any(written.in_memory):
            longest = max(map(len, written.tags))
            tags = [[*tag, *[-1] * (longest - len(tag))] for tag in written.tags]
            ready |= {"in_memory": torch.tensor(written.in_memory), "reads": written.reads(),
                      "memory_tags": torch.tensor(tags, dtype=torch.long).view(len(tags), longest)}
        return ready

    def normalised(self, tiles):
        """uint8 [n, 3, P, P] -> float32, as the encoder was trained on."""
        mean, spread = (255 * torch.tensor(self.config.pixels[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        return (tiles.float() - mean) / spread

    def _special(self, token):
        return self.tokenizer.convert_tokens_to_ids(token)

    def _ids(self, text):
        """Ordinary tokens only: text that looks like a special token stays text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []

    def _turns(self, question, pictures, history, system):
        turns = [turn for asked, answered in history for turn in (["user", asked], ["assistant", answered])]
        turns.append(["user", question])
        placeholders = sum(text.count(PLACEHOLDER) for _, text in turns)
        if not placeholders:
            turns[0][1] = f"{PLACEHOLDER}\n" * pictures + turns[0][1]
        elif placeholders != pictures:
            raise ValueError(f"{placeholders} {PLACEHOLDER} in the conversation, {pictures} images")
        system = self.prompt["system"] if system is None else system
        return turns if system is None or not self.prompt["roles"] else [["system", system], *turns]

    def _segments(self, turns):
        """("text" | "special", what) and ("picture", None), in order. Without roles: as in pretraining."""
        roles, begin, opening, end, after = (self.prompt[key] for key in ("roles", "begin", "open", "end", "after"))
        yield from begin
        for role, text in turns:
            if roles:
                yield from ((kind, part.format(role=role) if kind == "text" else part) for kind, part in opening)
            for number, piece in enumerate(text.split(PLACEHOLDER)):
                if number:
                    yield from (("text", OPEN), ("picture", None), ("text", CLOSE))
                yield "text", piece
            if roles or role == "assistant":
                yield "special", end
            yield "text", after if roles else "" if role == "assistant" else "\n"
        if roles:
            yield from ((kind, part.format(role="assistant") if kind == "text" else part) for kind, part in opening)

    def _write(self, turns, grids):
        written, text = Written(), ""
        for kind, part in self._segments(turns):
            if kind == "text":
                text += part        # neighbouring texts are tokenised together, as one string would be
            elif kind == "special":
                written.tokens += [*self._ids(text), self._special(part)]
                text = ""
            else:
                self._add_picture(written, text, next(grids))
                text = ""
        written.tokens += self._ids(text)
        return written

    def _add_picture(self, written, text, grid):
        """One picture behind the text that leads to it; its tags tokenised alone, or joined to that text (`join_tags`)."""
        config, kind = self.config, self.config.model_type
        tags = tile_tags(self.prompt["tags"], self.prompt["global_tag"], grid, config.force_image_size, config.use_thumbnail)
        shown = {"NVLM_D": len(tags), "NVLM_X": 0, "NVLM_H": 1 if config.use_thumbnail or len(tags) == 1 else 0}[kind]
        if self.prompt["join_tags"] and shown == len(tags):
            tags, text = [text + tags[0], *tags[1:]], ""
        written.tokens += self._ids(text)
        start, bound = len(written.tokens), False
        for number, tag in enumerate(map(self._ids, tags)):
            memory = number < len(tags) - shown
            written.in_memory.append(memory)
            before = len(written.tokens)
            if not memory:
                written.tokens += [*tag, *[self.image_id] * self.tile_tokens]
                continue
            if kind == "NVLM_X":
                written.tokens += tag
                bound = bound or bool(tag) and config.cross_attention_config["tag_mask"]
            written.bound.append((before, len(written.tokens)) if bound else (0, 0))
            written.tags.append(tag if kind == "NVLM_H" else [])
        count = sum(written.in_memory) - len(written.seen_from)
        written.seen_from += [len(written.tokens) if bound else start] * count
