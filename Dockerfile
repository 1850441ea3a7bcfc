# cdc_archiver as a container: `make image` builds it; `make image-test` builds it, runs it and archives files with it.
#
# BASE is a Debian (trixie or later, for rsync 3.4) with Python 3.11 or later as python3.
ARG BASE=python:3.12-slim-trixie

FROM ${BASE} AS build
# The versions that were tested together, also for the build of the wheel (a separate setting of pip since 25.3).
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/build/constraints.txt PIP_BUILD_CONSTRAINT=/build/constraints.txt
WORKDIR /build
COPY . .
RUN ["python3", "-m", "venv", "/opt/cdc_archiver"]
# A service does not need pip.
RUN /opt/cdc_archiver/bin/python -m pip install --quiet . \
 && /opt/cdc_archiver/bin/python -m pip uninstall --quiet --yes pip

FROM ${BASE} AS runtime
# tini reaps the children of a killed rsync. libnss_wrapper provides an account for a uid without one (`user:` in a compose
# file): OpenSSH refuses to work without an account.
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get -qq update \
 && apt-get -qq install --yes --no-install-recommends libnss-wrapper openssh-client rsync tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
# The observatory's user, by name and number; any other uid works, too.
RUN groupadd --gid 9000 ocs \
 && useradd --uid 9000 --gid 9000 --create-home --home-dir /home/ocs --shell /bin/sh ocs \
 && install --directory --owner 9000 --group 9000 --mode 755 /data /config \
 && install --directory --owner 9000 --group 9000 --mode 700 /home/ocs/.ssh \
 && install --directory --owner 9000 --group 9000 --mode 1777 /var/lib/cdc_archiver \
 && chmod 755 /home/ocs
COPY --from=build /opt/cdc_archiver /opt/cdc_archiver
COPY deploy/container/healthcheck.py /opt/cdc_archiver/healthcheck.py

ENV PATH=/opt/cdc_archiver/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/home/ocs \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CDC_ARCHIVER_HTTP_HOST=0.0.0.0 \
    CDC_ARCHIVER_HTTP_PORT=9184 \
    CDC_ARCHIVER_LOG_FORMAT=json
# Staging, if files cannot be staged next to data_dir. Any uid may write there.
VOLUME /var/lib/cdc_archiver
USER 9000:9000
WORKDIR /home/ocs
EXPOSE 9184
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python3", "-I", "/opt/cdc_archiver/healthcheck.py"]
ENTRYPOINT ["tini", "--", "cdc-archiver"]
CMD ["run"]

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="cdc_archiver" \
      org.opencontainers.image.description="Archives a readout server's files: MySQL/MariaDB binlog in, rsync over ssh, proof of arrival back in the row" \
      org.opencontainers.image.licenses="BSD-2-Clause" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Only for the demo of deploy/compose.yaml: a readout server with sshd, and an instrument that writes and registers files.
FROM runtime AS demo
USER 0:0
RUN apt-get -qq update \
 && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends openssh-server \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
 && install --directory --mode 755 /run/sshd \
 && usermod --password '*' ocs
COPY deploy/demo/ /opt/demo/
HEALTHCHECK NONE
ENTRYPOINT ["tini", "--"]
CMD ["/opt/demo/readout.sh"]

# The last stage is the one that a build without --target makes.
FROM runtime
