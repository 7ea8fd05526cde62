-- The ledger as schema version 1 made it (0.1.0), on SQLite and PostgreSQL alike; never to be changed.
CREATE TABLE attempts (
    attempt_id TEXT NOT NULL, 
    item_id TEXT NOT NULL, 
    attempt INTEGER NOT NULL, 
    catalogue TEXT NOT NULL, 
    shard TEXT NOT NULL, 
    prompt_id TEXT NOT NULL, 
    sample INTEGER NOT NULL, 
    campaign TEXT, 
    model TEXT NOT NULL, 
    resolution TEXT NOT NULL, 
    request_hash TEXT NOT NULL, 
    cause TEXT NOT NULL, 
    run_id TEXT NOT NULL, 
    root_run_id TEXT NOT NULL, 
    run_scope TEXT NOT NULL, 
    owner TEXT NOT NULL, 
    state TEXT NOT NULL, 
    first_status TEXT, 
    task_id TEXT, 
    day TEXT NOT NULL, 
    created_at BIGINT NOT NULL, 
    submitted_at BIGINT, 
    completed_at BIGINT, 
    stored_at BIGINT, 
    closed_at BIGINT, 
    submits INTEGER NOT NULL, 
    polls INTEGER NOT NULL, 
    prompt_tokens BIGINT, 
    completion_tokens BIGINT, 
    total_tokens BIGINT, 
    reserved_micros BIGINT NOT NULL, 
    cost_micros BIGINT NOT NULL, 
    at_risk_micros BIGINT NOT NULL, 
    cost_source TEXT, 
    price_version TEXT, 
    error_kind TEXT, 
    error_code TEXT, 
    error_message TEXT, 
    text TEXT, 
    metadata TEXT, 
    urls TEXT, 
    images TEXT, 
    PRIMARY KEY (attempt_id), 
    UNIQUE (item_id, attempt)
);
CREATE INDEX attempts_by_day ON attempts (day);
CREATE INDEX attempts_by_shard ON attempts (shard);
CREATE UNIQUE INDEX attempts_one_open ON attempts (item_id) WHERE state IN ('submitting', 'submitted', 'completed', 'unknown', 'overdue');
CREATE INDEX attempts_open_by_owner ON attempts (owner) WHERE state IN ('submitting', 'submitted', 'completed', 'unknown', 'overdue');
CREATE INDEX attempts_open_by_shard ON attempts (shard) WHERE state IN ('submitting', 'submitted', 'completed', 'unknown', 'overdue');
CREATE TABLE budget (
    scope TEXT NOT NULL, 
    reserved BIGINT NOT NULL, 
    spent BIGINT NOT NULL, 
    at_risk BIGINT NOT NULL, 
    PRIMARY KEY (scope)
);
CREATE TABLE catalogues (
    catalogue TEXT NOT NULL, 
    fingerprint TEXT, 
    registered_at BIGINT, 
    next_position BIGINT NOT NULL, 
    PRIMARY KEY (catalogue)
);
CREATE TABLE items (
    item_id TEXT NOT NULL, 
    catalogue TEXT NOT NULL, 
    prompt_id TEXT NOT NULL, 
    sample INTEGER NOT NULL, 
    shard TEXT NOT NULL, 
    position BIGINT NOT NULL, 
    request_hash TEXT NOT NULL, 
    campaign TEXT, 
    labels TEXT, 
    active BOOLEAN NOT NULL, 
    state TEXT NOT NULL, 
    note TEXT, 
    attempts INTEGER NOT NULL, 
    last_attempt_id TEXT, 
    PRIMARY KEY (item_id)
);
CREATE INDEX items_by_position ON items (catalogue, position);
CREATE INDEX items_by_request ON items (request_hash);
CREATE INDEX items_work ON items (shard, state, active);
CREATE TABLE latency_history (
    model TEXT NOT NULL, 
    resolution TEXT NOT NULL, 
    latencies TEXT NOT NULL, 
    updated_at BIGINT NOT NULL, 
    PRIMARY KEY (model, resolution)
);
CREATE TABLE leases (
    owner TEXT NOT NULL, 
    shard TEXT NOT NULL, 
    run_id TEXT NOT NULL, 
    host TEXT NOT NULL, 
    boot_id TEXT NOT NULL, 
    pid_namespace TEXT NOT NULL, 
    pid INTEGER NOT NULL, 
    started TEXT NOT NULL, 
    acquired_at BIGINT NOT NULL, 
    expires_at BIGINT NOT NULL, 
    PRIMARY KEY (owner)
);
CREATE TABLE ledger_meta (
    "key" TEXT NOT NULL, 
    value TEXT NOT NULL, 
    PRIMARY KEY ("key")
);
CREATE TABLE requests (
    request_hash TEXT NOT NULL, 
    model TEXT NOT NULL, 
    resolution TEXT NOT NULL, 
    body TEXT NOT NULL, 
    PRIMARY KEY (request_hash)
);
CREATE TABLE shards (
    shard TEXT NOT NULL, 
    catalogue TEXT NOT NULL, 
    number INTEGER NOT NULL, 
    prompts INTEGER NOT NULL, 
    PRIMARY KEY (shard)
);
CREATE INDEX ix_shards_catalogue ON shards (catalogue);
CREATE TABLE throttle (
    account TEXT NOT NULL, 
    state TEXT NOT NULL, 
    PRIMARY KEY (account)
);
