BEGIN TRANSACTION;
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
INSERT INTO "attempts" VALUES('01a205d5e3e5b8764efa2f8979956d09','40188b937f2d5951a742d1acec62e330',1,'old','old-000000','p000',1,'spring','nano_banana_2','0.5K','cb1467d3f7d1e263c8c423fcf0b156fb','new','run-1','run-1','run-1','run-1-a79f2cf1edc3','stored','in_progress','d1681a5270973b306277','2026-11-23',1795394233317,1795394233972,1795394234246,1795394235944,1795394236065,1,1,7,1121,1128,50834,45946,0,'price_list','google-list-2026-02-26',NULL,NULL,NULL,NULL,'{"in_queue_at":1795394234.018,"upload_at":1795394234.046,"completed_at":1795394234.046}','["http://127.0.0.1:34327/images/d1681a5270973b306277/0.jpg?expires=1795397834&issue=1&signature=3a208e9276a7fe78785e6705c4046427"]','[{"n":1,"path":"images/old/old-000000/p000-1-9e5ae5bf89fc.jpg","sha256":"9e5ae5bf89fcbd5c4bdae71a28406ac91313d2875c407656f7c0e839c3b770c9","bytes":16364,"format":"jpeg","width":512,"height":512,"expected_width":null,"expected_height":null,"has_c2pa":false,"source_url":"http://127.0.0.1:34327/images/d1681a5270973b306277/0.jpg"}]');
INSERT INTO "attempts" VALUES('01a205d5e3e59fb9bfe11566e29813b4','2c188b55c41a496c3043a123f81dd679',1,'old','old-000000','p001',1,NULL,'nano_banana_2','1K','81ec84f08b38e3e51a2da34cc809c7a3','new','run-1','run-1','run-1','run-1-a79f2cf1edc3','stored','in_progress','de460bfdcf6872649e27','2026-11-23',1795394233317,1795394233972,1795394234620,1795394236387,1795394236496,1,1,7,1394,1401,73214,68026,0,'price_list','google-list-2026-02-26',NULL,NULL,NULL,NULL,'{"in_queue_at":1795394234.074,"upload_at":1795394234.096,"completed_at":1795394234.096}','["http://127.0.0.1:34327/images/de460bfdcf6872649e27/0.jpg?expires=1795397834&issue=1&signature=23b0a224da30c63f18dfdbff68c2d5f0"]','[{"n":1,"path":"images/old/old-000000/p001-1-3eafe531189e.jpg","sha256":"3eafe531189ede5c85fde77bde5d1149bd58ca9e5ae547f8d0c6becae4797f5a","bytes":50487,"format":"jpeg","width":1024,"height":1024,"expected_width":null,"expected_height":null,"has_c2pa":false,"source_url":"http://127.0.0.1:34327/images/de460bfdcf6872649e27/0.jpg"}]');
INSERT INTO "attempts" VALUES('01a205d5e3e5fc6ea9265825cc0910fe','b247feb8db732682d95ec3e2a1ff9106',1,'old','old-000000','p002',1,'spring','nano_banana_2','0.5K','b27347a4321cb596a020afce830ecc4d','new','run-1','run-1','run-1','run-1-a79f2cf1edc3','unknown',NULL,NULL,'2026-11-23',1795394233317,NULL,NULL,NULL,NULL,1,0,NULL,NULL,NULL,50834,0,50834,NULL,NULL,'unknown_outcome',NULL,'the server closed the connection without an answer',NULL,NULL,NULL,NULL);
INSERT INTO "attempts" VALUES('01a205d5e3e50890daa04a6057167428','4c5ffcfb6b2038b03a3a633b5389e449',1,'old','old-000000','p003',1,NULL,'nano_banana_2','1K','e29c9421088d116f0e3b89cbe3e012a5','new','run-1','run-1','run-1','run-1-a79f2cf1edc3','refused','http_400',NULL,'2026-11-23',1795394233317,NULL,NULL,NULL,1795394234094,1,0,NULL,NULL,NULL,73214,0,0,NULL,NULL,'content_policy','000110001','HTTP 400 (request not accepted): input image is sensitive',NULL,NULL,NULL,NULL);
INSERT INTO "attempts" VALUES('01a205d5e3e54d8c9d0141df075a7142','0398c443a65e9b8640b6cd06bde3bf8c',1,'old','old-000000','p004',1,'spring','nano_banana_2','0.5K','8a13e6abdf8eba2c72b13852841fee1e','new','run-1','run-1','run-1','run-1-a79f2cf1edc3','stored','in_progress','d101c361156be251a157','2026-11-23',1795394233317,1795394233972,1795394234621,1795394235791,1795394235897,1,1,7,945,952,50834,45418,0,'price_list','google-list-2026-02-26',NULL,NULL,NULL,NULL,'{"in_queue_at":1795394234.075,"upload_at":1795394234.096,"completed_at":1795394234.096}','["http://127.0.0.1:34327/images/d101c361156be251a157/0.jpg?expires=1795397834&issue=1&signature=998608b456b4eadf2aa3807d6574bc2f"]','[{"n":1,"path":"images/old/old-000000/p004-1-9e5ae5bf89fc.jpg","sha256":"9e5ae5bf89fcbd5c4bdae71a28406ac91313d2875c407656f7c0e839c3b770c9","bytes":16364,"format":"jpeg","width":512,"height":512,"expected_width":null,"expected_height":null,"has_c2pa":false,"source_url":"http://127.0.0.1:34327/images/d101c361156be251a157/0.jpg"}]');
INSERT INTO "attempts" VALUES('01a205d5e3e5ac227085ae42d18a3e93','55b7fd03217bfd5b32726c53c8bfb18d',1,'old','old-000000','p005',1,NULL,'nano_banana_2','1K','9049875a11a48c3341a98e3cc2fbe06a','new','run-1','run-1','run-1','run-1-a79f2cf1edc3','stored','in_progress','d567d7c442295b173b9c','2026-11-23',1795394233317,1795394233973,1795394234621,1795394236585,1795394236691,1,1,7,1309,1316,73214,67771,0,'price_list','google-list-2026-02-26',NULL,NULL,NULL,NULL,'{"in_queue_at":1795394234.076,"upload_at":1795394234.101,"completed_at":1795394234.101}','["http://127.0.0.1:34327/images/d567d7c442295b173b9c/0.jpg?expires=1795397834&issue=1&signature=3efeaae10d72be01b26502fabd98742b"]','[{"n":1,"path":"images/old/old-000000/p005-1-3eafe531189e.jpg","sha256":"3eafe531189ede5c85fde77bde5d1149bd58ca9e5ae547f8d0c6becae4797f5a","bytes":50487,"format":"jpeg","width":1024,"height":1024,"expected_width":null,"expected_height":null,"has_c2pa":false,"source_url":"http://127.0.0.1:34327/images/d567d7c442295b173b9c/0.jpg"}]');
CREATE TABLE budget (
	scope TEXT NOT NULL, 
	reserved BIGINT NOT NULL, 
	spent BIGINT NOT NULL, 
	at_risk BIGINT NOT NULL, 
	PRIMARY KEY (scope)
);
INSERT INTO "budget" VALUES('catalogue:old',0,227161,50834);
INSERT INTO "budget" VALUES('day:2026-11-23',0,227161,50834);
INSERT INTO "budget" VALUES('run:run-1',0,227161,50834);
CREATE TABLE catalogues (
	catalogue TEXT NOT NULL, 
	fingerprint TEXT, 
	registered_at BIGINT, 
	next_position BIGINT NOT NULL, 
	PRIMARY KEY (catalogue)
);
INSERT INTO "catalogues" VALUES('old','52ca21b9d5a264702b63bedd181db630',1795394232437,6);
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
INSERT INTO "items" VALUES('40188b937f2d5951a742d1acec62e330','old','p000',1,'old-000000',0,'cb1467d3f7d1e263c8c423fcf0b156fb','spring','{"season":"dry"}',1,'done',NULL,1,'01a205d5e3e5b8764efa2f8979956d09');
INSERT INTO "items" VALUES('2c188b55c41a496c3043a123f81dd679','old','p001',1,'old-000000',1,'81ec84f08b38e3e51a2da34cc809c7a3',NULL,'{"season":"wet"}',1,'done',NULL,1,'01a205d5e3e59fb9bfe11566e29813b4');
INSERT INTO "items" VALUES('b247feb8db732682d95ec3e2a1ff9106','old','p002',1,'old-000000',2,'b27347a4321cb596a020afce830ecc4d','spring','{"season":"dry"}',1,'unknown',NULL,1,'01a205d5e3e5fc6ea9265825cc0910fe');
INSERT INTO "items" VALUES('4c5ffcfb6b2038b03a3a633b5389e449','old','p003',1,'old-000000',3,'e29c9421088d116f0e3b89cbe3e012a5',NULL,'{"season":"wet"}',1,'failed',NULL,1,'01a205d5e3e50890daa04a6057167428');
INSERT INTO "items" VALUES('0398c443a65e9b8640b6cd06bde3bf8c','old','p004',1,'old-000000',4,'8a13e6abdf8eba2c72b13852841fee1e','spring','{"season":"dry"}',1,'done',NULL,1,'01a205d5e3e54d8c9d0141df075a7142');
INSERT INTO "items" VALUES('55b7fd03217bfd5b32726c53c8bfb18d','old','p005',1,'old-000000',5,'9049875a11a48c3341a98e3cc2fbe06a',NULL,'{"season":"wet"}',1,'done',NULL,1,'01a205d5e3e5ac227085ae42d18a3e93');
CREATE TABLE latency_history (
	model TEXT NOT NULL, 
	resolution TEXT NOT NULL, 
	latencies TEXT NOT NULL, 
	updated_at BIGINT NOT NULL, 
	PRIMARY KEY (model, resolution)
);
INSERT INTO "latency_history" VALUES('nano_banana_2','0.5K','[0.219,0.519]',1795394236734);
INSERT INTO "latency_history" VALUES('nano_banana_2','1K','[0.518,0.518]',1795394236942);
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
INSERT INTO "ledger_meta" VALUES('schema_version','1');
INSERT INTO "ledger_meta" VALUES('mode','simulated');
INSERT INTO "ledger_meta" VALUES('origin','http://127.0.0.1:34327');
CREATE TABLE requests (
	request_hash TEXT NOT NULL, 
	model TEXT NOT NULL, 
	resolution TEXT NOT NULL, 
	body TEXT NOT NULL, 
	PRIMARY KEY (request_hash)
);
INSERT INTO "requests" VALUES('cb1467d3f7d1e263c8c423fcf0b156fb','nano_banana_2','0.5K','{"model":"nano_banana_2","prompt":"a picture of thing number 0","resolution":"0.5K"}');
INSERT INTO "requests" VALUES('81ec84f08b38e3e51a2da34cc809c7a3','nano_banana_2','1K','{"model":"nano_banana_2","prompt":"a picture of thing number 1","resolution":"1K"}');
INSERT INTO "requests" VALUES('b27347a4321cb596a020afce830ecc4d','nano_banana_2','0.5K','{"model":"nano_banana_2","prompt":"a picture of thing number 2","resolution":"0.5K"}');
INSERT INTO "requests" VALUES('e29c9421088d116f0e3b89cbe3e012a5','nano_banana_2','1K','{"model":"nano_banana_2","prompt":"a picture of thing number 3","resolution":"1K"}');
INSERT INTO "requests" VALUES('8a13e6abdf8eba2c72b13852841fee1e','nano_banana_2','0.5K','{"model":"nano_banana_2","prompt":"a picture of thing number 4","resolution":"0.5K"}');
INSERT INTO "requests" VALUES('9049875a11a48c3341a98e3cc2fbe06a','nano_banana_2','1K','{"model":"nano_banana_2","prompt":"a picture of thing number 5","resolution":"1K"}');
CREATE TABLE shards (
	shard TEXT NOT NULL, 
	catalogue TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	prompts INTEGER NOT NULL, 
	PRIMARY KEY (shard)
);
INSERT INTO "shards" VALUES('old-000000','old',0,6);
CREATE TABLE throttle (
	account TEXT NOT NULL, 
	state TEXT NOT NULL, 
	PRIMARY KEY (account)
);
CREATE INDEX ix_shards_catalogue ON shards (catalogue);
CREATE INDEX items_work ON items (shard, state, active);
CREATE INDEX items_by_request ON items (request_hash);
CREATE INDEX items_by_position ON items (catalogue, position);
CREATE INDEX attempts_open_by_shard ON attempts (shard) WHERE state IN ('submitting', 'submitted', 'completed', 'unknown', 'overdue');
CREATE INDEX attempts_by_shard ON attempts (shard);
CREATE INDEX attempts_by_day ON attempts (day);
CREATE INDEX attempts_open_by_owner ON attempts (owner) WHERE state IN ('submitting', 'submitted', 'completed', 'unknown', 'overdue');
CREATE UNIQUE INDEX attempts_one_open ON attempts (item_id) WHERE state IN ('submitting', 'submitted', 'completed', 'unknown', 'overdue');
COMMIT;
