"""The node that edits captions and says what training makes of them."""

from __future__ import annotations

from comfy_api.latest import io

from ...training.dataset.caption_edits import (
    MOST_ABSORB_ABOVE,
    CaptionEdits,
    SortTags,
    edit_and_report,
    require_absorber,
)
from ...training.dataset.caption_options import CaptionOptions
from ...training.dataset.find_replace import replacement
from ...training.dataset.samples import ImageDataset
from ..graph.checks import choice, verdict
from ..graph.wires import AtelierDataset
from ..live.progress import show_text

EDITS, OPTIONS = CaptionEdits(), CaptionOptions()
"""The defaults, which change nothing."""


class EditCaptions(io.ComfyNode):
    """ATELIER_DATASET -> ATELIER_DATASET with other captions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierEditCaptions",
            display_name="Edit Captions",
            category="training/atelier/dataset",
            description=(
                "Changes captions for good (trigger word, tags added, removed, replaced, sorted), "
                "and says what training does to them each time: shuffle, leave out, fill in "
                "wildcards. Shows how many captions change; the files stay as they are."
            ),
            inputs=[
                AtelierDataset.Input(
                    "dataset", tooltip="Pictures whose captions are edited, from any dataset node."
                ),
                *_texts(),
                *_find_and_replace(),
                *_order(),
                *_tags_in_training(),
                *_captions_in_training(),
            ],
            outputs=[
                AtelierDataset.Output(
                    "edited_dataset",
                    display_name="dataset",
                    tooltip="The same pictures with the new captions, for Train LoRA.",
                ),
                io.String.Output(
                    "preview",
                    display_name="preview",
                    tooltip=(
                        "What the node shows on itself: how many captions changed, which tags "
                        "went, some examples, and how many texts will be encoded."
                    ),
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        class_tokens: str | None = None,
        find: str | None = None,
        replace_with: str | None = None,
        use_regex: bool | None = None,
        absorb_above: float | None = None,
        keep_tokens: int | None = None,
        keep_tokens_separator: str | None = None,
        caption_tag_dropout_rate: float | None = None,
        caption_dropout_rate: float | None = None,
        caption_dropout_every_n_epochs: int | None = None,
        caption_variants: int | None = None,
        caption_separator: str | None = None,
    ) -> bool | str:
        wrong = [
            verdict(require_absorber, class_tokens, absorb_above),
            verdict(replacement, find, replace_with, use_regex),
            verdict(
                CaptionOptions,
                keep_tokens=keep_tokens,
                keep_tokens_separator=keep_tokens_separator,
                caption_tag_dropout_rate=caption_tag_dropout_rate,
                caption_dropout_rate=caption_dropout_rate,
                caption_dropout_every_n_epochs=caption_dropout_every_n_epochs,
                caption_variants=caption_variants,
                caption_separator=caption_separator,
            ),
        ]
        return next((text for text in wrong if text is not True), True)

    @classmethod
    def execute(
        cls,
        dataset: ImageDataset,
        class_tokens: str,
        caption_prefix: str,
        caption_suffix: str,
        add_tags: str,
        remove_tags: str,
        find: str,
        replace_with: str,
        use_regex: bool,
        deduplicate: bool,
        sort_tags: str,
        absorb_above: float,
        **in_training: bool | int | float | str,
    ) -> io.NodeOutput:
        edits = CaptionEdits(
            class_tokens=class_tokens,
            caption_prefix=caption_prefix,
            caption_suffix=caption_suffix,
            add_tags=add_tags,
            remove_tags=remove_tags,
            find=find,
            replace_with=replace_with,
            use_regex=use_regex,
            deduplicate=deduplicate,
            sort_tags=choice("sort_tags", sort_tags, SortTags),
            absorb_above=absorb_above,
        )
        options = CaptionOptions(**in_training)
        edited, report = edit_and_report(dataset, edits, None if options == OPTIONS else options)
        text = report.text()
        show_text(text)
        return io.NodeOutput(edited, text)


def _texts() -> list[io.String.Input]:
    return [
        io.String.Input(
            "class_tokens",
            default=EDITS.class_tokens,
            placeholder="trigger word (optional)",
            tooltip=(
                "Trigger word put in front of every caption; where it stands as a tag already, it "
                "moves there. Regularisation pictures go without. When you shuffle, set "
                "keep_tokens to 1 so that it stays in front."
            ),
        ),
        io.String.Input(
            "caption_prefix",
            default=EDITS.caption_prefix,
            placeholder="text before (optional)",
            tooltip=(
                'Text before every caption, such as "photo of", with a space between. The '
                "trigger word still comes first. For a tag use add_tags."
            ),
        ),
        io.String.Input(
            "caption_suffix",
            default=EDITS.caption_suffix,
            placeholder="text after (optional)",
            tooltip=(
                'Text behind every caption, such as "on a white background", with a space between '
                "unless it begins with a comma or full stop."
            ),
        ),
        io.String.Input(
            "add_tags",
            default=EDITS.add_tags,
            placeholder="tag, tag",
            tooltip=(
                "Tags for every caption that lacks them, behind its own ones. For what all "
                "pictures share and should still be changeable in a prompt, e.g. simple background."
            ),
        ),
        io.String.Input(
            "remove_tags",
            default=EDITS.remove_tags,
            placeholder="tag, *_eyes",
            tooltip=(
                "Blacklist: whole tags, capitals or not, that are taken out of every caption. * "
                "stands for anything: *_eyes, artist:*. Good for the mistakes of taggers, such as "
                "signature or watermark."
            ),
        ),
    ]


def _find_and_replace() -> list[io.Input]:
    return [
        io.String.Input(
            "find",
            default=EDITS.find,
            placeholder="text to replace",
            tooltip=(
                "Text that is replaced wherever it stands in a caption, even inside a word; "
                "capitals count. Comes before all other edits. Empty = nothing."
            ),
        ),
        io.String.Input(
            "replace_with",
            default=EDITS.replace_with,
            placeholder="new text",
            tooltip=(
                "What stands there instead; empty takes the found text away. With use_regex, \\1 "
                "is what the first group in brackets found."
            ),
        ),
        io.Boolean.Input(
            "use_regex",
            default=EDITS.use_regex,
            tooltip=(
                "On: find is a regular expression as Python knows them, e.g. (?i)\\bfoxe?s?\\b. "
                "Off: find is taken letter by letter."
            ),
        ),
    ]


def _order() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "deduplicate",
            default=EDITS.deduplicate,
            tooltip="Keeps only the first of equal tags in a caption; taggers often repeat some.",
        ),
        io.Combo.Input(
            "sort_tags",
            options=SortTags,
            default=EDITS.sort_tags,
            tooltip=(
                "Order of the tags. most_frequent_first puts the subject in front, "
                "rarest_first what is special about a picture, alphabetical makes sets alike. "
                "Leave as_written for sentences, which would be torn apart at their commas."
            ),
        ),
        io.Float.Input(
            "absorb_above",
            default=EDITS.absorb_above,
            min=0.0,
            max=MOST_ABSORB_ABOVE,
            step=0.05,
            round=0.001,
            tooltip=(
                "Tags that more than this share of the training captions have are taken out, so "
                "that the trigger word learns what they say: 0.9 for a character whose hair and "
                "eyes are always the same. Needs class_tokens. 0 = off."
            ),
        ),
    ]


def _tags_in_training() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "shuffle_caption",
            default=OPTIONS.shuffle_caption,
            tooltip=(
                "On: tags come in another order each time, so that none matters more for standing "
                "first. Good for tags, wrong for sentences."
            ),
        ),
        io.Int.Input(
            "keep_tokens",
            default=OPTIONS.keep_tokens,
            min=0,
            max=1000,
            tooltip=(
                "How many tags at the front are neither shuffled nor left out: 1 for a trigger "
                "word. Counts tags, not the text encoder's tokens."
            ),
        ),
        io.String.Input(
            "keep_tokens_separator",
            default=OPTIONS.keep_tokens_separator,
            tooltip=(
                "Where this stands in a caption, what is before it stays in front instead of the "
                "first keep_tokens, and what follows a second one stays at the end. It is never "
                "encoded. Empty = not used."
            ),
        ),
        io.Float.Input(
            "caption_tag_dropout_rate",
            default=OPTIONS.caption_tag_dropout_rate,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            tooltip=(
                "Share of the tags that is left out each time, kept ones never. 0.1 makes the "
                "LoRA lean less on single tags. 0 = off."
            ),
        ),
    ]


def _captions_in_training() -> list[io.Input]:
    return [
        io.Float.Input(
            "caption_dropout_rate",
            default=OPTIONS.caption_dropout_rate,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            tooltip=(
                "How often a picture is seen without any caption, trigger word included. 0.05 to "
                "0.1 helps a style to show without words, and CFG to work. 0 = never."
            ),
        ),
        io.Int.Input(
            "caption_dropout_every_n_epochs",
            default=OPTIONS.caption_dropout_every_n_epochs,
            min=0,
            max=1_000_000,
            tooltip=(
                "Every so many epochs, all pictures are seen without caption: 5 = the fifth, the "
                "tenth and so on. 0 = never, which is usual."
            ),
        ),
        io.Boolean.Input(
            "enable_wildcard",
            default=OPTIONS.enable_wildcard,
            tooltip=(
                "On: {red|ginger} fox in a caption becomes one of both each time; write {{ for a "
                "brace. Off: braces are plain text."
            ),
        ),
        io.Int.Input(
            "caption_variants",
            default=OPTIONS.caption_variants,
            min=1,
            max=1000,
            tooltip=(
                "How many shuffled, thinned out or filled in texts of each picture are encoded "
                "before training, which then draws from them. 8 is usual; more is more varied and "
                "takes longer to encode."
            ),
        ),
        io.String.Input(
            "caption_separator",
            default=OPTIONS.caption_separator,
            tooltip=(
                "What stands between two tags in the captions. A comma is usual; change it for "
                "captions written as tag; tag."
            ),
        ),
    ]
