#!/bin/sh
# Draw the pictures of these pages again: docs/use-cases/make.sh [MODEL], from anywhere. The drafts' picture is
# of the HTML sheet, by Chromium.
set -eu
MODEL=${1:-emoji}
PYTHON=${PYTHON:-python}
CHROMIUM=${CHROMIUM:-chromium}
# A run may be named from where the caller stands.
if [ -e "$MODEL" ]; then MODEL=$(realpath "$MODEL"); fi
cd "$(dirname "$0")"
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
draw() { "$PYTHON" -m imagen_pl.cli.main "$@"; }

# save FILE NAME: as a small PNG of at most 1050 px width and 256 colours, without metadata, since that contains the model's path
# on this machine.
save() {
    "$PYTHON" - "$1" "$2" <<'PYTHON'
import sys

from PIL import Image

picture = Image.open(sys.argv[1]).convert("RGB")
picture.thumbnail((1050, 1300), Image.Resampling.LANCZOS)
picture.quantize(256).save(sys.argv[2], optimize=True)
PYTHON
}

draw variants "$MODEL" "red heart" "cupcake" --num_images 4 --out "$made/variants.png"
save "$made/variants.png" variants.png

draw sample "$MODEL" "red heart, fluent style" "crown, noto style" "rocket, noto style" \
    --num_images 2 --transparent --plain --out "$made/grid.png" --singles "$made/props"
"$PYTHON" - "$made" <<'PYTHON'
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from imagen_pl.imaging.grids import strip

made = Path(sys.argv[1])
props = strip([Image.open(file) for file in sorted((made / "props").glob("*.png"))], min_width=128)
scene = Image.new("RGBA", props.size, "#28406e")
draw = ImageDraw.Draw(scene)
for y in range(0, props.height, 16):
    for x in range(y % 32, props.width, 32):
        draw.rectangle((x, y, x + 15, y + 15), fill="#1c2c4e")
scene.alpha_composite(props)
scene.convert("RGB").save(made / "scene.png")
PYTHON
save "$made/scene.png" props.png

draw sample icons "birthday cake, outline" "birthday cake, filled" --num_images 8 --out "$made/candidates.png"
save "$made/candidates.png" missing-icon.png

draw sheet "$MODEL" brief.csv --out "$made/drafts.html"
# The name instead of a path on this machine.
sed -i "s#$MODEL#emoji#g" "$made/drafts.html"
"$CHROMIUM" --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=620,1240 \
    --screenshot="$made/drafts.png" "file://$made/drafts.html" 2>/dev/null
save "$made/drafts.png" drafts.png
ls -l ./*.png
