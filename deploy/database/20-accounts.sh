# Accounts with the least permissions. The database's image runs this file once, when its data
# directory is empty, as part of its own script: docker_process_sql is the image's.
docker_process_sql <<SQL
CREATE USER 'archiver'@'%' IDENTIFIED BY '$(cat /run/secrets/mysql_password)';
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'archiver'@'%';
GRANT SELECT, UPDATE ON ${MYSQL_DATABASE}.${FILES_TABLE} TO 'archiver'@'%';
GRANT CREATE, SELECT, INSERT, DELETE ON ${MYSQL_DATABASE}.cdc_archiver_history TO 'archiver'@'%';
GRANT CREATE, SELECT, INSERT, UPDATE ON ${MYSQL_DATABASE}.cdc_archiver_archives TO 'archiver'@'%';
GRANT CREATE, SELECT, INSERT, UPDATE ON ${MYSQL_DATABASE}.cdc_archiver_timecodes TO 'archiver'@'%';
GRANT CREATE, SELECT, INSERT, UPDATE ON ${MYSQL_DATABASE}.cdc_archiver_marks TO 'archiver'@'%';
GRANT CREATE, SELECT, INSERT, UPDATE ON ${MYSQL_DATABASE}.cdc_archiver_registrars TO 'archiver'@'%';
GRANT CREATE, SELECT, INSERT, UPDATE ON ${MYSQL_DATABASE}.cdc_archiver_registrar_losses TO 'archiver'@'%';
GRANT CREATE, SELECT, INSERT, UPDATE ON ${MYSQL_DATABASE}.cdc_archiver_registered TO 'archiver'@'%';
CREATE USER 'monitor'@'%' IDENTIFIED BY '$(cat /run/secrets/monitor_password)';
GRANT INSERT ON ${MYSQL_DATABASE}.${FILES_TABLE} TO 'monitor'@'%';
SQL
