"""Tiny models, data and trainings as words of a command line: each trains in about a second on one core."""

DATA = ["data.image_size=32", "data.size=96", "data.val_size=16", "data.batch_size=8"]
TRAINER = ["trainer=cpu", "trainer.precision=32-true", "trainer.val_every_steps=4", "trainer.limit_val_batches=1",
           "trainer.checkpoint_every_steps=2", "logger=csv"]
QUIET = ["callbacks.plots=null", "callbacks.pictures=null", "callbacks.progress=null"]  # for tests of something else
TRANSFORMER = ["model.width=16", "model.num_layers=1", "model.num_heads=2"]
CLIP = ["model=clip", "model.patch_size=8", *TRANSFORMER, "model.text_width=16", "model.text_layers=1",
        "model.text_heads=2", "model.embed_dim=8"]
TOKENIZER = ["model=vqgan", "model.autoencoder.channels=8", "model.autoencoder.multipliers=[1]",
             "model.autoencoder.attention_levels=[]", "model.autoencoder.mid_attention=false",
             "model.autoencoder.patch_size=8", "model.autoencoder.z_channels=8", "model.autoencoder.num_groups=0",
             "model.quantizer.codebook_size=16", "model.quantizer.dim=4"]
VQGAN = [*TOKENIZER, "model.discriminator.channels=4", "model.discriminator.num_layers=2"]
PRIOR = ["model=prior", *TRANSFORMER, "model.dropout=0.1"]
DFGAN = ["model=dfgan", "model.generator.channels=2", "model.discriminator.channels=2", "model.text_dim=8"]
STACKGAN1 = ["model=stackgan1", "model.generator.channels=4", "model.discriminator.channels=4",
             "model.generator.noise_dim=12", "model.generator.condition_dim=8", "model.generator.text_dim=8"]
