-- What a cluster keeps in object storage of versions, datasets and reports. With store.kind file there is nothing here.

CREATE TABLE artifacts (
    id         VARCHAR   NOT NULL,
    kind       VARCHAR   NOT NULL,  -- version, dataset or report
    name       VARCHAR   NOT NULL,  -- its path below the folder of its kind
    files      JSON      NOT NULL,  -- name to {key, bytes, sha256}; the key is below store.objects_url
    created_at TIMESTAMP NOT NULL,
    removed_at TIMESTAMP            -- when it was removed, or others took its place; null: it counts. The row goes with the files
);
