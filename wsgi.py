from qwen_wsgi.app import create_app

application = create_app()
