"""The table of files, as the monitors make it."""

TABLE = "pysmurf_files"
CREATE_TABLE = f"""
CREATE TABLE {TABLE} (
    id INT AUTO_INCREMENT PRIMARY KEY, path VARCHAR(260) NOT NULL, action VARCHAR(32), timestamp TIMESTAMP NULL,
    action_timestamp INT, format VARCHAR(32), plot TINYINT(1), site VARCHAR(32), pub_id VARCHAR(32), script_id VARCHAR(32),
    instance_id VARCHAR(32), copied TINYINT(1), failed_copy_attempts INT, md5sum BINARY(16) NOT NULL,
    pysmurf_version VARCHAR(64), socs_version VARCHAR(64)
)
"""
"""As the monitors of the Simons Observatory make it; a new table would look different."""
