"""The network that docs/architecture.md follows through the compiler."""

import graphc as gx

B = gx.dim("B")
x = gx.input("x", (B, 6))
t = gx.input("t", (B,), dtype="int32")
h = gx.nn.Linear(6, 4, name="fc1")(x).tanh()
logits = gx.nn.Linear(4, 3, name="fc2")(h)
loss = gx.softmax_cross_entropy(logits, t)
step = gx.compile({"loss": loss}, loss=loss, optimizer=gx.optim.SGD(lr=0.1), backend="numpy")
