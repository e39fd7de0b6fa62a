"""Storage emulators on loopback, and the variables with which a process finds them."""

import contextlib
import logging
import os

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def put(folder, target):
    """Put the files of a folder of this machine into a store."""
    for file in folder.rglob("*"):
        if file.is_file():
            target.joinpath(file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


@contextlib.contextmanager
def s3(server):
    """An S3 with the bucket `bucket`; server: the module moto.server."""
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    one = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    one.start()
    try:
        address = "http://{}:{}".format(*one.get_host_and_port())
        client = boto3.client(
            "s3",
            endpoint_url=address,
            region_name=KEYS["AWS_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket="bucket")
        yield {**KEYS, "AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": KEYS["AWS_REGION"]}
    finally:
        one.stop()


def fresh_s3():
    """A function that forgets what was known of S3 and its buckets in this process."""
    import s3fs

    from manu_jax import stores

    def forget():
        s3fs.S3FileSystem.clear_instance_cache()
        stores._look_at_bucket.cache_clear()
        assert os.environ["AWS_ENDPOINT_URL"]

    return forget


@contextlib.contextmanager
def gs(server):
    """A Google Cloud Storage with the bucket `bucket`; server: gcp_storage_emulator.server."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    download = server.objects.download

    def with_generation(request, response, storage, *rest, **settings):
        """TensorStore asks for a header that the emulator leaves out."""
        with contextlib.suppress(server.objects.NotFound):
            names = request.params["bucket_name"], request.params["object_id"]
            response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]
        download(request, response, storage, *rest, **settings)

    server.objects.download = with_generation
    for _, handlers in server.HANDLERS:
        if handlers.get(server.GET) is download:
            handlers[server.GET] = with_generation
    one = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    one.start()
    try:
        address = f"http://127.0.0.1:{one._api._httpd.server_address[1]}"
        # Without the last, gcsfs asks Google itself about the bucket.
        yield {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    finally:
        one.stop()
