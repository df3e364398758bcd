"""Train on captioned images with your own Trainer, and draw: python docs/python.py my_photos/ 20000"""

import sys
from functools import partial

from lightning.pytorch import Trainer
from torch.optim import Adam

from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.callbacks.run_length import RunLength
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.imaging.grids import to_pil, to_uint8
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import Relativistic
from imagen_pl.losses.gradient_penalties import R1, R2
from imagen_pl.losses.text_matching import MismatchedCaptions
from imagen_pl.models.discriminators.multiscale import MultiscaleDiscriminator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.schedules import Cosine, Stage

channels = {4: 128, 8: 64, 16: 32}  # feature maps by resolution
adam = partial(Adam, lr=1e-3, betas=(0.0, 0.99))
model = TextToImageGAN(
    generator=StyleGenerator(channels, text_dim=384, latent_dim=64, style_dim=128),
    discriminator=MultiscaleDiscriminator(channels, text_dim=384, final_dim=128),
    text_encoder=FrozenTextEncoder(),  # a sentence encoder of 384 features, installed with this package
    adversarial=Relativistic(),
    penalties=[R1(weight=0.5), R2(weight=0.5)],
    losses=[MismatchedCaptions(discriminator_weight=1.0)],
    generator_optimizer=adam,
    discriminator_optimizer=adam,
    learning_rate_schedule=Cosine(start=1.0, end=0.25, share=1.0),
)
stages = [Stage(8, share=0.3, batch_size=8), Stage(16, batch_size=8, fade_share=0.2)]
length = RunLength(max_images=int(sys.argv[2]))
trainer = Trainer(callbacks=[ProgressiveGrowing(stages), length], max_epochs=-1, logger=False)
trainer.fit(model, CaptionedImages(FolderSource(sys.argv[1])))
(picture,) = to_pil(to_uint8(model.sample(["a red square"], seed=7)))
picture.save("python.png")
