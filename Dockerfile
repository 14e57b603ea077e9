# abdoseg: CT in, labels of 13 abdominal organs out. Python, the pinned dependencies of
# inference/, the code and the weights; no torch, no compiler, no pip cache.
#
#   docker build -t abdoseg .                          the image
#   docker build --build-arg MODEL=NAME -t abdoseg .   with another default model of weights/
#   docker build --target test -t abdoseg:test .       with the tests on top
#
# Where the build has no network, put the wheels into a folder wheelhouse/ first:
#   pip download --no-deps --only-binary=:all: -d wheelhouse -r inference/requirements.lock
# (on Linux with Python 3.11; for the stage "test" also with -r .ci/test.lock).

FROM python:3.11-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    PYTHONPATH=/workspace:/opt/packages \
    ABDOSEG_PYTHON=python3

# The dependencies, from wheelhouse/ if there is one, else from the index. --no-deps: the lock
# file is complete, and without it openvino brings a package that reports usage over the network.
FROM base AS packages
COPY inference/requirements.lock wheelhous[e]/ /wheels/
RUN set -eu; cd /wheels; \
    set -- --no-deps --no-cache-dir --no-compile --disable-pip-version-check --root-user-action=ignore; \
    if ls ./*.whl >/dev/null 2>&1; then set -- "$@" --no-index --find-links=/wheels; fi; \
    pip install "$@" --target /opt/packages -r requirements.lock
# What a CPU that reads OpenVINO's own model format never loads: the plugins for GPU and NPU with
# the GPU's kernel cache, the plugins that spread work over devices, the readers of other formats,
# the C interface and its headers, and the converter (which also takes 0.2 s of every start).
# Then tests (numpy.testing imports one file of numpy's own), type stubs and scripts, pydicom's
# dictionary of medical terms and its example files.
RUN set -eu; cd /opt/packages; \
    rm -rf bin openvino/include openvino/cmake openvino/tools openvino/torch openvino/libs/cache.json; \
    for part in intel_gpu_plugin intel_npu_plugin auto_plugin auto_batch_plugin hetero_plugin \
        gguf_frontend jax_frontend onnx_frontend paddle_frontend pytorch_frontend \
        tensorflow_frontend tensorflow_lite_frontend c; do \
        rm -f openvino/libs/libopenvino_$part.so*; \
    done; \
    rm -rf numpy/_core/include numpy/_core/lib pydicom/sr pydicom/data/test_files; \
    find numpy -path '*/tests/*' -type f ! -name __init__.py ! -name _natype.py -delete; \
    find . -name '*.pyi' -delete

# The code and the weights. Bytecode is compiled here, because a container that runs read-only or
# as another user could not keep it; "unchecked": nothing in an image changes behind its back.
FROM base AS code
COPY --from=packages /opt/packages /opt/packages
COPY predict.sh /workspace/
COPY inference /workspace/inference
COPY weights /workspace/weights
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/packages /workspace/inference \
    && chmod -R a+rX /workspace /opt/packages

FROM base AS product
LABEL org.opencontainers.image.title="abdoseg" \
      org.opencontainers.image.description="Segments 13 abdominal organs in CT on a CPU. Not a medical device."
COPY --from=code /opt/packages /opt/packages
COPY --from=code /workspace /workspace
ARG MODEL=""
ENV ABDOSEG_MODEL=$MODEL
WORKDIR /workspace
# Something missing, or no such model: fail the build, not the first patient.
RUN python3 -c "import SimpleITK, inference.cli, inference.model; inference.model.Model.load()"
CMD ["sh", "predict.sh"]

# The product with the tests of inference/ and of the scores on top. Training needs torch; the set-up
# by predict.sh, packaging and timing are tested where they are used, outside.
FROM product AS test
COPY .ci/test.lock wheelhous[e]/ /wheels/
RUN set -eu; cd /wheels; \
    set -- --no-deps --no-cache-dir --disable-pip-version-check --root-user-action=ignore; \
    if ls ./*.whl >/dev/null 2>&1; then set -- "$@" --no-index --find-links=/wheels; fi; \
    pip install "$@" --target /opt/test-packages -r test.lock
ENV PYTHONPATH=/workspace:/opt/packages:/opt/test-packages \
    MPLCONFIGDIR=/tmp HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
COPY pyproject.toml /workspace/
COPY evaluation /workspace/evaluation
COPY tests /workspace/tests
CMD ["sh", "-c", "exec python3 -m pytest -p no:cacheprovider tests/test_inference_*.py tests/test_phantom.py tests/test_evaluation_scoring.py tests/test_evaluation_comparison.py"]

FROM product
