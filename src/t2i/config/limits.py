"""What is allowed where no constructor says it: values by key, files that must exist, arguments that the code gives."""

from __future__ import annotations

# Arguments that the code gives beside the config's, by the path of the node.
GIVEN: dict[str, tuple[str, ...]] = {"data": ("split",)}
# Keys of a node that are the loop's business, not its constructor's.
BESIDE: dict[str, tuple[str, ...]] = {"data": ("batch_size", "workers")}
# Values that belong to no constructor: annotation, least and largest allowed.
VALUES: dict[str, tuple[str, float | None, float | None]] = {
    "seed": ("int", 0, None),
    "n": ("int | None", 1, None),
    "best_of": ("int", 1, None),
    "batch_size": ("int | None", 1, None),
    "size": ("int | None", 8, None),
    "allow_download": ("bool", None, None),
    "n_per_task": ("int", 1, None),
    "n_pairs": ("int", 1, None),
    "pairs": ("Literal['all', 'val', 'test']", None, None),
    "temperature": ("float | None", 0, None),
    "top_k": ("int | None", 1, None),
    "top_p": ("float | None", 0, 1),
    "guidance": ("float | None", 0, None),
    "truncation": ("float | None", 0, 1),
    "unconditional": ("bool", None, None),
    "debug": ("bool", None, None),
    "trust": ("list[str]", None, None),
    "init": ("str | None", None, None),
    "init_allow": ("list[str]", None, None),
    "freeze": ("list[str]", None, None),
    "estimate": ("bool", None, None),
    "nearest": ("bool", None, None),
    "style_guidance": ("bool", None, None),
    "pack": ("bool", None, None),
    "split": ("Literal['train', 'val']", None, None),
    "sheet": ("int", 0, None),
    "device": ("Literal['auto', 'cpu', 'cuda', 'mps']", None, None),
    "completion.rows": ("int | None", 1, None),
    "data.batch_size": ("int", 1, None),
    "data.workers": ("int", 0, None),
    "trainer.accelerator": ("Literal['auto', 'cpu', 'gpu', 'cuda', 'mps']", None, None),
    "trainer.devices": ("int | Literal['auto'] | list[int]", -1, None),
    "trainer.num_nodes": ("int", 1, None),
    "trainer.strategy": ("str | dict[str, Any]", None, None),
    "trainer.precision": ("Literal['auto', '32-true', 'bf16-mixed', '16-mixed']", None, None),
    "trainer.max_steps": ("int", 1, None),
    "trainer.max_minutes": ("float | None", 0, None),
    "trainer.val_every_steps": ("int", 1, None),
    "trainer.log_every_steps": ("int", 1, None),
    "trainer.limit_val_batches": ("int | float", 0, None),
    "trainer.checkpoint_every_steps": ("int | None", 1, None),
    "trainer.checkpoint_every_minutes": ("float | None", 0, None),
    "trainer.gradient_clip_val": ("float | None", 0, None),
    "trainer.accumulate_grad_batches": ("int", 1, None),
    "trainer.matmul_precision": ("Literal['highest', 'high', 'medium'] | None", None, None),
    "trainer.monitor_mode": ("Literal['min', 'max']", None, None),
    "trainer.compile": ("bool | Literal['aot_eager']", None, None),
}
# Files and folders that must exist: path of the key -> what it names.
FILES = {"ckpt": "a checkpoint", "init": "a checkpoint, or an exported folder",
         "images": "a folder of pictures", "inception": "the file of Inception's weights",
         "vgg": "the file of VGG16's weights", "model.tokenizer.path": "a tokenizer's file",
         "model.stage1.path": "the checkpoint of a stage I (model=stackgan1)",
         "prompts": "a text file with one prompt a line", "completion.image": "a picture", "data.root": "a folder",
         "text_encoder.vocabulary": "the words of a text encoder, captions_DAMSM.pickle"}
