from sensorium.selfsup.cpc_streams.method import StreamCPC


def method():
    return StreamCPC(3, width=6, state=5, depth=2, halvings=1, steps=2)


def batch(images):
    return {"frames": images(12, 4).flatten(2).mT}  # 16 frames of 3 values
