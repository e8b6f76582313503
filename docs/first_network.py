import numpy as np

import graphc as gx

B = gx.dim("B")  # an extent that is bound at run time
x, t = gx.input("x", (B, 2)), gx.input("t", (B,), dtype="int32")
h = gx.nn.Linear(2, 16, name="fc1")(x).tanh()
logits = gx.nn.Linear(16, 2, name="fc2")(h)
loss = gx.softmax_cross_entropy(logits, t)
step = gx.compile({"loss": loss}, loss=loss, optimizer=gx.optim.Adam(lr=0.05))
infer = gx.compile(logits.argmax(-1))  # shares the parameters

points = np.random.default_rng(0).uniform(-1, 1, (1000, 2)).astype(np.float32)
inside = (np.hypot(*points.T) < 0.7).astype(np.int32)  # within a circle?
history = step.fit({"x": points, "t": inside}, epochs=40, batch_size=100)
print(f"loss {history['loss'][0]:.2f} -> {history['loss'][-1]:.2f}")
print("centre, corner:", infer.run(x=[[0.0, 0.0], [0.9, 0.9]]))
print(gx.formula(logits))
