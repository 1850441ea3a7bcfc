# The table of files and the index for sweeps, as `cdc-archiver init-db` makes them. FILES_TABLE is the
# table's name for its writers. The database's image runs this file once, when its data directory is
# empty; docker_process_sql is the image's.
docker_process_sql <<SQL
CREATE TABLE ${FILES_TABLE} (
    id INTEGER NOT NULL AUTO_INCREMENT,
    path VARCHAR(260) NOT NULL,
    action VARCHAR(32),
    timestamp TIMESTAMP NULL,
    action_timestamp INTEGER,
    format VARCHAR(32),
    plot TINYINT(1),
    site VARCHAR(32),
    pub_id VARCHAR(32),
    script_id VARCHAR(32),
    instance_id VARCHAR(32),
    copied TINYINT(1),
    failed_copy_attempts INTEGER,
    md5sum BINARY(16) NOT NULL,
    pysmurf_version VARCHAR(64),
    socs_version VARCHAR(64),
    PRIMARY KEY (id)
)ENGINE=InnoDB;
CREATE INDEX \`cdc_archiver_pending\` ON \`${FILES_TABLE}\` (\`copied\`, \`instance_id\`, \`id\`, \`failed_copy_attempts\`);
SQL
