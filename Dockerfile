# docs/install.md says how it is used.
FROM python:3.11-slim
COPY . /src
RUN pip install --no-cache-dir /src
# Whoever the container runs as has no home; caches of libraries go here.
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["t2i"]
CMD ["train", "experiments=quickstart"]
