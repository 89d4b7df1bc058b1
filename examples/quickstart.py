"""The README's example: a model, trained and quantized to 2 bits, as a file of machine code."""

import torch

import gnnquant
from gnnquant.datasets import digits
from gnnquant.demo_models import GCN

torch.manual_seed(0)
data = digits()
model = GCN(data.num_features, classes=10)
gnnquant.finetune(model, data, lr=0.01, epochs=100)  # any training will do; this one trains floats too

q = gnnquant.convert(model, bits=2)
gnnquant.finetune(q, data, teacher=model, epochs=100)
compiled = gnnquant.compile(q)
compiled.save("gcn-int2.gnnq")

loaded = gnnquant.load("gcn-int2.gnnq")
right = loaded(data.x, data.edge_index).argmax(dim=1) == data.y
print(f"accuracy on the test nodes: {right[data.test_mask].float().mean():.1%}")
