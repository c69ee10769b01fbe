"""Files on disk and on S3: atomic writes, strict readers and schemas, hashes, links, transfers; the layout of runs/.
No networks.
"""
